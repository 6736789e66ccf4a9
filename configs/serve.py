"""The limits of `python -m drenet_jax.serve`: cost of requests, keeping of answers.

Used unless `--config` names another file; single fields are set as `--config.places=4`. The values
are for one model on a hospital's workstation.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # In-flight requests: uploading, waiting, or in work. One is processed at a time, for some
    # seconds, so the last of nine waits about a minute; further requests are refused (429). Each
    # may fill the temporary folder with `upload_mib`.
    config.places = 9

    # One upload, in MiB. A thousand uncompressed slices of 512 x 512 take half a GiB.
    config.upload_mib = 1024

    # Files in one upload, or in one zip. A CT of thin slices has some hundreds, one with several
    # reconstructions some thousands.
    config.files = 5000

    # What the members of a zip may unpack to in all, in MiB. Lossless JPEG saves about half.
    config.unpacked_mib = 4096

    # Seconds for one upload: `upload_mib` takes 90 s at 100 Mbit/s.
    config.upload_seconds = 600.0

    # Least upload rate in KiB/s, once `patience_seconds` have passed: a slow client holds a slot.
    # A poor mobile network gives 100.
    config.least_kib_a_second = 32.0

    # Seconds a connection may be silent before its request, and an upload before its rate counts.
    config.patience_seconds = 10.0

    # Seconds for one job, without waiting. Reading takes some seconds; a file that hangs its
    # decoder takes 15 (then it is excluded).
    config.work_seconds = 120.0

    # Memory limit of the process that decodes files, in MiB. It needs about 1500 for a series
    # of slices, and three times the file for a volume.
    config.reader_mib = 6144

    # Answers kept in memory until they are fetched: their number, total size, and age. A report
    # takes one to ten MiB.
    config.answers = 32
    config.answers_mib = 256
    config.answer_minutes = 30.0

    # Open connections; more are closed at once. A browser holds up to six, and most systems give a
    # process 1024 files.
    config.connections = 400

    # Seconds in which a client must receive an answer: a report of 10 MiB at 1.4 Mbit/s.
    config.send_seconds = 60.0

    # Seconds for which the rest of a refused upload is read and dropped, so that the client sees
    # the answer; a connection closed at once would be reset.
    config.linger_seconds = 5.0

    # Seconds that the running job gets when the server is stopped.
    config.shutdown_seconds = 30.0

    return config
