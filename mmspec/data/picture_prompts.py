"""Questions from a folder of pictures with a text file beside each."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from .examples import Example, Source
from .sources import pictures_in


class PicturePrompts(Source):
    """Pictures in a folder and the folders below it, each with the question in the text file of the same name.

        photos/cat.jpg
        photos/cat.txt          What is the cat doing?
        photos/charts/a.png     task "charts"
        photos/charts/a.txt     Which bar is the tallest?

    The folder below the top that a picture lies in is its task. For several questions about a picture, or several
    pictures in a question, write a file for `ConversationFile` instead.

    Args:
        folder: where the pictures and texts (UTF-8) are; hidden files are left out.
        prompt: question about a picture that has no text file.

    Raises:
        MMSpecError: if there is no such folder or no picture in it, a picture has no text file and there is no `prompt`
            either, or a text file is empty or cannot be read. A picture that cannot be read raises an error only when
            it is opened.
    """

    folder: Path

    def __init__(self, folder: str | Path, prompt: str | None = None):
        self.folder = Path(folder)
        if prompt is not None and not prompt.strip():
            raise MMSpecError(f"prompt={prompt!r} is empty; give a question, or null to refuse pictures without one")
        self.pictures = pictures_in(self.folder)
        self.prompts = [self._text(name, prompt) for name in self.pictures]

    def _text(self, picture: str, default: str | None) -> str:
        path = (self.folder / picture).with_suffix(".txt")
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            if default is None:
                raise MMSpecError(
                    f"picture {picture!r} has no question: write it to {str(path)!r}, or set prompt= for all pictures "
                    "without one"
                ) from None
            return default
        except (OSError, UnicodeDecodeError) as error:
            raise MMSpecError(f"the question in {str(path)!r} cannot be read: {error}") from None
        if not text:
            raise MMSpecError(f"{str(path)!r} is empty: write the question about {picture!r} into it, or delete it")
        return text

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Example:
        picture = self.pictures[index]
        folder, slash, _ = picture.partition("/")
        return Example(picture, self.prompts[index], (picture,), folder if slash else "")

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        content = "\0".join([*self.pictures, *self.prompts]).encode("utf-8", "surrogateescape")
        return {"source": "folder", "content": hashlib.blake2b(content, digest_size=8).hexdigest()}
