"""The conformance kit: whether a modality keeps the contract that pre-training, features and saved models rely on."""
