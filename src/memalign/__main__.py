"""``python -m memalign``."""

from memalign.cli import main

if __name__ == "__main__":
    main()
