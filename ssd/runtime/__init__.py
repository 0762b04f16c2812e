"""What everything else stands on: files, processes, threads, devices, packed rows."""
