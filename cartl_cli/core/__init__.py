"""The method as a library: no Typer, no Rich, no printing, no globals."""
