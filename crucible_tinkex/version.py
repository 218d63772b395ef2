"""The version of this package, a constant: it is known also where the package is only unpacked,
as in a working folder that Ray ships, and has no metadata. The build reads it from here."""

VERSION = "0.2.0"
