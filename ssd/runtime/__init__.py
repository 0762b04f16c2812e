"""Code without detection in it, used by all of `ssd`: files, texts, processes, threads, devices, packed rows."""
