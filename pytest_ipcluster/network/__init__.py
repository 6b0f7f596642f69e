"""The network between the engines and the controller, and ways to hurt it."""
