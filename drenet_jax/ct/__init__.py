"""One person's images: from files to lung crops.  NumPy and OpenCV; no JAX, no TensorFlow."""
