"""Parts of the command line that `__main__` puts together. They call verbs of the control plane and print; no more."""
