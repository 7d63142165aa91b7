"""What examples/benchmarks/gpu.py asks of one card: how it is run, what must agree, how fast it is."""

from card.running import Bench, Section, run_sections

__all__ = ["Bench", "Section", "run_sections"]
