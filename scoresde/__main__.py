"""``python -m scoresde`` is the program ``scoresde``."""

from scoresde.cli.main import main

if __name__ == "__main__":
    main()
