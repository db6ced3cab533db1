"""The one kind of error that is shown without a traceback."""


class UserError(ValueError):
    """What the person who runs usfm can put right: the message says where and how.

    Everything else that is raised is a bug, and is shown with its traceback.
    """
