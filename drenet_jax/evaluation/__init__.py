"""From a trained model to answers: a person's diagnosis, metrics with intervals, reports."""
