"""`kgraft info`: versions, backends, devices."""

import click


@click.command("info")
def command() -> None:
    """Show what kgraft runs on: versions, the backends found, the devices of the one in use."""
    import platform
    from importlib.metadata import version

    from kgraft import backend
    from kgraft.engines.backends import BACKEND

    in_use = backend.settle()
    rows = {"kgraft": version("kgraft"), "python": platform.python_version()}
    rows |= {name: version(name) for name in ("keras", "numpy", "tensorflow-datasets")}
    for name in backend.BACKENDS:
        found = backend.installed_version(name)
        package = name if name == "torch" else f"'kgraft[{name}]'"
        found = found or f"not installed: pip install {package}"
        rows[name] = f"{found} (in use)" if name == in_use else found
    rows["devices"] = ", ".join(BACKEND.devices())
    for name, value in rows.items():
        click.echo(f"{name:<21}{value}")
