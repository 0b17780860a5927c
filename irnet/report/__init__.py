"""Pictures of what a model answered and the page that compares trained variants. Takes plain arrays, never a model."""
