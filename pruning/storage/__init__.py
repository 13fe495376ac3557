"""Published checkpoints in an object store: S3, Google Cloud Storage, the Hugging Face hub, or a
folder.

A store has one manifest for each checkpoint, and the files that it names under their SHA-256::

    manifests/NAME.json      the manifest, as published: written last, deleted first
    objects/NAME/SHA256      the content of a file, which never changes

So an interrupted upload is never visible, a second one sends only what is missing, and whatever is
read is compared with its name. The objects of a checkpoint are its own: hardly any bytes of two
checkpoints are equal, and the deletion of one needs no look at the others.

====================  =============================================================================
``store.py``          the port that all stores implement, and its errors
``location.py``       URLs, and the store that one names
``files.py``          a store on a file system of fsspec
``hub.py``            a store in a repository of the Hugging Face hub, by its commits
``transfer.py``       a checkpoint to the store, and its files back
``cache.py``          the files of checkpoints on this disk, of bounded size
``checkpoints.py``    the checkpoints of this machine and of the store as one ``CheckpointStore``
====================  =============================================================================

Knows no jobs: ``pruning.worker`` decides when a checkpoint is sent, and tries again.
"""
