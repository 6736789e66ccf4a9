"""Speed of training, inference and preprocessing beside their references."""
