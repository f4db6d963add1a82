"""What every worker process does around its work: claims, heartbeats, resume files, the end of a job."""
