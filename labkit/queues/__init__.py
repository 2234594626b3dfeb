"""The queues of a host's kernel, over time: where connections wait to be accepted, bytes to be read, threads to run."""
