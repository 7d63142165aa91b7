"""The parts of latent.py: its pictures, its models and what they cost, and how they are measured."""
