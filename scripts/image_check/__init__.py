"""Build the worker's image without a daemon, and show that it works: `make image-check`.

1. `store`: buildah's storage, the base image, the build.
2. `contents`: bytes, layers, secrets, the bill of materials.
3. `behaviour`: what its entries do.
4. `hub`: a server for what a build fetches.
5. `queue_worker`: stands in for Salad's program.
"""


class Wrong(Exception):
    """The image is not as it should be; the message is a sentence."""


class Unable(Exception):
    """This machine cannot do the check; the message says what is missing."""
