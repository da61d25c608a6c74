"""Questions from a folder of pictures, videos and sounds with a text file beside each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import MMSpecError
from ..files.identity import content_hash
from .examples import Example, Source
from .sources import media_in


class FolderPrompts(Source):
    """Pictures, videos and sounds in a folder and the folders below it, each with the question in the text file of the
    same name.

        photos/cat.jpg
        photos/cat.txt          What is the cat doing?
        photos/charts/a.png     task "charts"
        photos/charts/a.txt     Which bar is the tallest?
        photos/clips/a.mp4      task "clips"
        photos/clips/a.txt      What happens at the end?

    The folder below the top that a medium lies in is its task. For several questions about a medium, or several media
    in a question, write a file for `ConversationFile` instead.

    Args:
        folder: where the media and texts (UTF-8) are; hidden files are left out.
        prompt: question about a medium that has no text file.

    Raises:
        MMSpecError: if there is no such folder or no medium in it, a medium has no text file and there is no `prompt`
            either, or a text file is empty or cannot be read. A medium that cannot be read raises an error only when
            it is opened.
    """

    folder: Path

    def __init__(self, folder: str | Path, prompt: str | None = None):
        self.folder = Path(folder)
        if prompt is not None and not prompt.strip():
            raise MMSpecError(f"prompt={prompt!r} is empty; give a question, or null to refuse media without one")
        self.media = media_in(self.folder)
        self.prompts = [self._text(name, prompt) for name in self.media]

    def _text(self, medium: str, default: str | None) -> str:
        path = (self.folder / medium).with_suffix(".txt")
        try:
            text = path.read_text(encoding="utf-8-sig").strip()
        except FileNotFoundError:
            if default is None:
                raise MMSpecError(
                    f"{medium!r} has no question: write it to {str(path)!r}, or set prompt= for all media without one"
                ) from None
            return default
        except (OSError, UnicodeDecodeError) as error:
            raise MMSpecError(f"the question in {str(path)!r} cannot be read: {error}") from None
        if not text:
            raise MMSpecError(f"{str(path)!r} is empty: write the question about {medium!r} into it, or delete it")
        return text

    def __len__(self) -> int:
        return len(self.media)

    def __getitem__(self, index: int) -> Example:
        medium = list(self.media)[index]
        folder, slash, _ = medium.partition("/")
        media: dict[str, Any] = {self.media[medium]: (medium,)}
        return Example(medium, self.prompts[index], task=folder if slash else "", **media)

    def describe(self) -> dict[str, Any]:
        """Return plain JSON values that change when other examples stand at the same places."""
        content = "\0".join([*self.media, *self.prompts]).encode("utf-8", "surrogateescape")
        return {"source": "folder", "content": content_hash(content)}
