"""What a service is.

In come the folders and modules of the configuration, out comes the registry: each class with its name, its types and its
options, all worked out once.
"""
