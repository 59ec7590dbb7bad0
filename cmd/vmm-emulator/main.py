"""The emulator's entrypoint: everything is in launcher.emulator."""

from launcher.emulator.main import main

if __name__ == "__main__":
    main()
