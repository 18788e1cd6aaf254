"""Wire shapes: what goes over HTTP as JSON, and how it is made from core values."""
