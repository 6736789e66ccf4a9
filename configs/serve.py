"""What `python -m drenet_jax.serve` allows its visitors, and for how long it keeps what they send.

Used unless `--config` names another file; single fields are set as `--config.places=4`. The values
are for one model on a hospital's workstation; all of them bound what a visitor can cost.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()

    # Persons in the house at once: being sent, waiting, or in work. One is worked on at a time, for
    # some seconds, so the last of nine waits about a minute; later requests are asked to come
    # again (429). Each may fill the temporary folder with `upload_mib`.
    config.places = 9

    # One person's upload, in MiB. A thousand uncompressed slices of 512 x 512 take half a GiB.
    config.upload_mib = 1024

    # Files in one upload, or in one zip. A CT of thin slices has some hundreds, one with several
    # reconstructions some thousands.
    config.files = 5000

    # What the members of a zip may unpack to in all, in MiB. Lossless JPEG saves about half.
    config.unpacked_mib = 4096

    # An upload must be here after so many seconds: `upload_mib` takes 90 s at 100 Mbit/s.
    config.upload_seconds = 600.0

    # And it must keep up this rate, in KiB a second, once `patience_seconds` have gone by: a slow
    # sender holds a place. A poor mobile network gives 100.
    config.least_kib_a_second = 32.0

    # How long a connection may be silent before its request, and an upload before its rate counts,
    # in seconds.
    config.patience_seconds = 10.0

    # Seconds for the work on one person, apart from the queue. Reading takes some seconds; a file
    # that hangs its decoder takes 15 (then it is left out), and a second one, too.
    config.work_seconds = 120.0

    # Memory that the process that reads files may ask for, in MiB. It needs about 1500 for a series
    # of slices, and three times the file for a volume.
    config.reader_mib = 6144

    # Answers kept in memory for those who come to fetch them: at most so many, of so many MiB, for
    # so many minutes. A report takes one to ten MiB.
    config.answers = 32
    config.answers_mib = 256
    config.answer_minutes = 30.0

    # Open connections; more are closed at once. A browser holds up to six, and most systems give a
    # process 1024 files.
    config.connections = 400

    # Seconds in which a visitor must take an answer: a report of 10 MiB at 1.4 Mbit/s.
    config.send_seconds = 60.0

    # Seconds for which the rest of a refused upload is taken and dropped, so that the visitor reads
    # the answer; closed at once, the connection would break under it.
    config.linger_seconds = 5.0

    # Seconds that the request in work gets when the server receives a stop signal.
    config.shutdown_seconds = 30.0

    return config
