"""The worker: a parent process that holds the lease, and a child process for each job."""
