"""Agent: a person and a model in conversation. So far the terminal; the model's tools are run by the person."""
