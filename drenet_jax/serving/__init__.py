"""The paper's online server: a page and a JSON API round one trained model."""
