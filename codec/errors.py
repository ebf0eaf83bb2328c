"""Everything that can go wrong with a picture, a stream or a model, each by its own name."""


class RdaeError(Exception):
    """Base of all errors of this package. The message is one line that names the cause."""


class ImageError(RdaeError):
    """An image cannot be read, written, or is of a kind that is not supported."""


class FormatError(RdaeError):
    """The data are not a well-formed `.rdae` stream."""


class BadMagicError(FormatError):
    """The data do not begin as an `.rdae` stream does."""


class UnsupportedError(FormatError):
    """A version, profile, colour mode or critical chunk that this release does not know."""


class TruncatedError(FormatError):
    """The data end before the stream does."""


class TrailingDataError(FormatError):
    """Bytes follow the end of the stream."""


class ChecksumError(FormatError):
    """The CRC-32 does not agree: the data were changed."""


class DimensionsError(FormatError):
    """The declared dimensions are zero or beyond the limit."""


class ModelError(RdaeError):
    """A model file is missing, damaged or not one of ours."""


class UnknownModelError(ModelError):
    """A stream names a model that is not at hand."""


class RdaeWarning(UserWarning):
    """Something of the picture does not survive, or a target is out of reach: the work goes on, but it is said."""
