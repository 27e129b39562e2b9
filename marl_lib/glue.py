"""Numbers for the prose of a chapter, taken from the cell that computed them."""

from __future__ import annotations

from numbers import Real


def glue(**values: Real | str) -> None:
    """Keep figures under their names, for ``{glue:text}`` in the text of the same notebook.

    On the site MyST-NB puts them into the sentence; in Colab and Jupyter this cell shows nothing,
    and needs nothing installed.

    >>> glue(worst_error=0.031)  # then, in the text: {glue:text}`worst_error:.1%`
    """
    from IPython.display import display  # only a notebook has a text to put them in

    for name, value in values.items():
        text = value if isinstance(value, str) else repr(float(value))
        prefix = "application/papermill.record/"
        display(  # type: ignore[no-untyped-call]
            {f"{prefix}text/plain": text},
            metadata={"scrapbook": {"name": name, "mime_prefix": prefix}},
            raw=True,
        )
