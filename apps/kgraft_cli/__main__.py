"""`python -m kgraft_cli`, as torchrun starts it: `torchrun -m kgraft_cli fit ...`."""

from kgraft_cli.main import main

if __name__ == "__main__":
    main()
