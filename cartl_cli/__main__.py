"""``python -m cartl_cli``."""

from cartl_cli.app import main

if __name__ == "__main__":
    main()
