"""The package's version, which is that of the client library and of the programs. Read by the build, too."""

VERSION = "0.1.0"
