"""The audit for shortcuts: what predicts the labels without a look at the lungs."""
