"""Which package or module family of the standard library wrote a file: one table, no code that runs it.

A family is a list of topics, a topic a line of entries. An entry is either a bare module name or a glob over
the path below the standard library's folder. A bare name `m` stands for the module or package (`m.py`, `m/*`)
and for the tests of it (`test/test_m.py`, `test/test_m/*`). The first topic that matches a path wins; a path
that none matches belongs to no class and serves only to learn the language.

Families are the parts of the library whose code can be told apart by what it does. Left out are those about
the language itself (typing, ast, dis) and those that sit between two others (sockets, command lines).
"""

from __future__ import annotations

FAMILIES: dict[str, tuple[str, ...]] = {
    "archives": (
        "bz2 gzip lzma zlib _compression",
        "zipfile test/test_zipfile64.py",
        "tarfile",
    ),
    "asyncio": ("asyncio",),
    "concurrent": (
        "multiprocessing test/_test_multiprocessing.py test/test_multiprocessing_*.py test/mp_*.py",
        "concurrent concurrent_futures",
        "threading thread test/lock_tests.py queue",
    ),
    "ctypes": ("ctypes",),
    "database": ("sqlite3", "dbm test/test_dbm_*.py"),
    "distutils": ("distutils",),
    "email": ("email", "mailbox", "smtplib smtpd", "imaplib poplib nntplib"),
    "encodings": (
        "encodings codecs charmapcodec multibytecodec test/test_codec*.py test/multibytecodec_support.py",
        "stringprep unicodedata ucn",
    ),
    "files": (
        "os posix",
        "posixpath ntpath genericpath",
        "pathlib glob fnmatch",
        "shutil tempfile filecmp",
    ),
    "idlelib": ("idlelib",),
    "importlib": ("importlib import imp pkgutil", "zipimport zipimport_support", "modulefinder runpy pkg"),
    "lib2to3": ("lib2to3",),
    "numbers": (
        "decimal _pydecimal",
        "fractions numbers numeric_tower abstract_numbers",
        "statistics",
        "math cmath float long int complex int_literal strtod pow",
    ),
    "tkinter": (
        "tkinter tcl tk ttk_guionly ttk_textonly tix ttk",
        "turtle turtledemo",
    ),
    "unittest": ("unittest", "doctest doctest2"),
    "web": (
        "html htmlparser",
        "http httplib httpservers http_cookies http_cookiejar",
        "urllib urllib2 urllib2_localnet urllib2net urllibnet urlparse urllib_response robotparser",
        "wsgiref",
        "xmlrpc docxmlrpc xmlrpc_net",
    ),
    "xml": (
        "xml xml_etree xml_etree_c xmltests",
        "sax pulldom minidom pyexpat",
    ),
}
