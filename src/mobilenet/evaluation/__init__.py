"""From a model and photos to labels, figures and a report."""
