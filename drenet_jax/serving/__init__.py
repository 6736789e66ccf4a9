"""The paper's online server: a web page and a JSON API around one trained model."""
