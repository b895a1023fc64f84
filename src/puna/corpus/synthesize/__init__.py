"""Imaginary businesses, from a seed: their handbook pages and the conversations of their customers."""
