"""What tests of several rooms share: toy data, small models, official-style files."""
