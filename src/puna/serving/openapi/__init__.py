"""Routes and models -> /openapi.json, the description of the API for programs."""
