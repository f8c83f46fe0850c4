"""From files to batches: sources, decoding, augmentation, tokens, groups, and the loader."""
