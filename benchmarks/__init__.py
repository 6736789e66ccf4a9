"""Speed of training, inference and preprocessing, compared with references."""
