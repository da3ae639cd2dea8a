"""All that the page says, one file a language."""

from __future__ import annotations

import tomllib
from pathlib import Path

from space.errors import InputError

FILES = Path(__file__).parent / "languages"


class Texts:
    """The texts of a language, by section and key: texts("image.upload"), texts("page.model", name="x")."""

    def __init__(self, language: str = "en"):
        """Read languages/LANGUAGE.toml. Raises InputError when there is none."""
        known = sorted(file.stem for file in FILES.glob("*.toml"))
        if language not in known:
            raise InputError(f"PAGE_LANGUAGE is {language!r}; expected one of {', '.join(known)}")
        self._sections = tomllib.loads((FILES / f"{language}.toml").read_text(encoding="utf-8"))

    def __call__(self, key: str, **names: object) -> str:
        """The text of a key with its {names} filled in."""
        section, _, name = key.partition(".")
        return self._sections[section][name].format(**names)
