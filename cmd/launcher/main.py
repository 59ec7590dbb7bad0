"""The container's entrypoint: everything is in launcher.cli."""

from launcher.cli import main

if __name__ == "__main__":
    main()
