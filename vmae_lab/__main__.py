import sys

from vmae_lab.cli import main

sys.exit(main())
