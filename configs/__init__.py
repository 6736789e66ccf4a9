"""Configs: a file for each model, and `prepare.py` and `serve.py` for those commands.

They are importable as `drenet_jax.configs`, so that a config can start from another one::

    from drenet_jax.configs import drenet
    config = drenet.get_config()
"""
