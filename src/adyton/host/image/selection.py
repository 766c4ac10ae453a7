"""What of the packages goes into an image: two tables of what stays out, and the libraries that what stays in needs."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable

from adyton.errors import ConfigurationError
from adyton.host.image.architecture import Architecture
from adyton.host.image.elf import MAGIC, Elf, parse_elf
from adyton.host.image.tree import File, Files, Tree, find_file

STANDARD_LIBRARY = "usr/lib/python3.11"
SITE_PACKAGES = f"{STANDARD_LIBRARY}/site-packages"
INTERPRETER = "usr/bin/python3.11"

#: Modules of the standard library that no server needs, by why.
_LEFT_OUT = frozenset(
    name
    for names in (
        # for people at a terminal or a screen
        "_curses _curses_panel cmd code codeop curses idlelib pydoc pydoc_data readline rlcompleter this antigravity",
        "tkinter turtle turtledemo webbrowser",
        # for those who write, test and install programs
        "__phello__ _lsprof bdb cProfile doctest ensurepip lib2to3 modulefinder pdb pickletools profile",
        "_distutils_system_mod compileall filecmp pstats py_compile pyclbr symtable tabnanny test timeit trace",
        "unittest venv zipapp distutils",
        # the interpreter's own tests
        "_ctypes_test _testbuffer _testcapi _testclinic _testimportmultiple _testinternalcapi _testmultiphase",
        "_xxsubinterpreters _xxtestfuzz xxlimited xxlimited_35",
        # mailboxes, sounds, colours, and files of Apple's
        "colorsys mailbox plistlib wave",
        # deprecated since 3.11, gone in 3.13 at the latest
        "_crypt aifc asynchat asyncore audioop cgi cgitb chunk crypt imghdr imp mailcap msilib nis nntplib ossaudiodev",
        "pipes smtpd sndhdr spwd sunau telnetlib uu xdrlib",
        # written in Python what the interpreter has in C; other systems' ways
        "_aix_support _bootsubprocess _osx_support _pydecimal _pyio _py_abc",
        # what the interpreter has frozen in itself, and loads from there; but for os, by which it finds its library
        "_collections_abc _sitebuiltins abc codecs genericpath importlib._bootstrap importlib._bootstrap_external",
        "importlib.machinery importlib.util io ntpath posixpath runpy site stat zipimport",
        # East Asia's encodings from before Unicode, a megabyte
        "_codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _multibytecodec",
        # protocols of other servers, and databases that need a library of their own
        "_dbm dbm ftplib imaplib poplib wsgiref xmlrpc",
    )
    for name in names.split()
)

#: Encodings that no server needs, by why.
_LEFT_OUT_ENCODINGS = frozenset(
    name
    for names in (
        # East Asia's, whose tables are left out
        "big5 big5hkscs cp932 cp949 cp950 euc_jis_2004 euc_jisx0213 euc_jp euc_kr gb18030 gb2312 gbk hz iso2022_jp",
        "iso2022_jp_1 iso2022_jp_2 iso2022_jp_2004 iso2022_jp_3 iso2022_jp_ext iso2022_kr johab shift_jis",
        "shift_jis_2004 shift_jisx0213",
        # of DOS; cp437 is that of names in zip files
        "cp720 cp737 cp775 cp850 cp852 cp855 cp856 cp857 cp858 cp860 cp861 cp862 cp863 cp864 cp865 cp866 cp869 cp1125",
        # of the first Macintosh, and of mainframes
        "mac_arabic mac_croatian mac_cyrillic mac_farsi mac_greek mac_iceland mac_latin2 mac_roman mac_romanian",
        "mac_turkish cp037 cp273 cp424 cp500 cp875 cp1026 cp1140",
        # of Windows, asked of Windows
        "mbcs oem",
    )
    for name in names.split()
)

#: What a wheel brings for compilers and type checkers.
_LEFT_OUT_SUFFIXES = (".a", ".c", ".cc", ".cpp", ".h", ".hpp", ".pxd", ".pyi", ".pyx")
_KEPT_OF_METADATA = ("METADATA", "entry_points.txt")


def select_standard_library(python: Tree) -> dict[str, File]:
    """The interpreter and its standard library, without what is left out. `python`: the files of its packages."""
    return {
        path: entry
        for path, entry in python.items()
        if isinstance(entry, File) and (path == INTERPRETER or _is_kept(path))
    }


def _is_kept(path: str) -> bool:
    """Whether it is a module of the standard library that stays in."""
    if not (path.startswith(f"{STANDARD_LIBRARY}/") and path.endswith((".py", ".so"))):
        return False
    module = path.removeprefix(f"{STANDARD_LIBRARY}/").removeprefix("lib-dynload/").replace("/", ".")
    package, inner, *_ = module.split(".")
    if package == "encodings":
        return inner not in _LEFT_OUT_ENCODINGS
    return package not in _LEFT_OUT and f"{package}.{inner}" not in _LEFT_OUT


def select_wheel(files: Files) -> dict[str, File]:
    """What of a wheel runs: its modules and data, and of its metadata what importlib.metadata is asked for."""
    return {f"{SITE_PACKAGES}/{path}": file for path, file in files.items() if _runs(path)}


def _runs(path: str) -> bool:
    folder, _, rest = path.partition("/")
    return rest in _KEPT_OF_METADATA if folder.endswith(".dist-info") else not path.endswith(_LEFT_OUT_SUFFIXES)


def select_libraries(objects: Files, packages: Tree, architecture: Architecture) -> dict[str, File]:
    """The libraries that `objects` need, and that those need, under the names by which they are needed.

    Raises ConfigurationError for one that neither `objects` nor `packages` have, and for another machine's objects.
    """
    found: dict[str, File] = {}
    here = {posixpath.basename(path) for path in objects}
    waiting = [(path, file.content) for path, file in objects.items() if file.content.startswith(MAGIC)]
    while waiting:
        origin, content = waiting.pop()
        for path in _needed_paths(_parse(origin, content, architecture), architecture, packages):
            if posixpath.basename(path) not in here:
                found[path] = _library(path, origin, packages)
                here.add(posixpath.basename(path))
                waiting.append((path, found[path].content))
    return found


def _needed_paths(elf: Elf, architecture: Architecture, packages: Tree) -> Iterable[str]:
    if loader := elf.interpreter():
        yield loader
    for name in elf.needed():
        places = (f"{folder}/{name}" for folder in architecture.library_folders)
        yield next((place for place in places if find_file(packages, place)), name)


def _parse(origin: str, content: bytes, architecture: Architecture) -> Elf:
    elf = parse_elf(content, origin)
    if elf.machine != architecture.elf_machine:
        raise ConfigurationError(f"{origin} is an object of another machine than {architecture.name}")
    return elf


def _library(path: str, origin: str, packages: Tree) -> File:
    if library := find_file(packages, path):
        return library
    raise ConfigurationError(
        f"{origin} needs {posixpath.basename(path)}, which is not in the image",
        mend="take a wheel that brings its libraries along, or do without that package",
    )
