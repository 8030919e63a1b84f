"""Scaling studies: what more nodes buy, measured, fitted, predicted and put into advice. Torch-free."""
