"""Files that operating systems put beside images, also under the names of images."""

from __future__ import annotations

#: A reason to leave a file out -> what is counted under it.
SYSTEM_FILES = "files of operating systems (._*, __MACOSX, .DS_Store, Thumbs.db, desktop.ini)"
_NAMES = frozenset({".ds_store", "thumbs.db", "ehthumbs.db", "desktop.ini"})
#: Folders of resource forks (macOS, netatalk), thumbnails (Synology) and deleted files.
_FOLDERS = frozenset(
    {"__macosx", ".appledouble", "@eadir", ".trashes", "$recycle.bin", ".spotlight-v100"}
)


def is_system_file(path: str) -> bool:
    """Whether a path is that of a file which an operating system made, not a camera.

    A file `._a.png` holds the resource fork of `a.png` in the format AppleDouble (RFC 1740).
    """
    lower = path.lower()
    folder, _, name = lower.rpartition("/")
    if name.startswith("._") or name in _NAMES:
        return True
    if "_" not in folder and "@" not in folder and "." not in folder and "$" not in folder:
        return False
    return not _FOLDERS.isdisjoint(folder.split("/"))
