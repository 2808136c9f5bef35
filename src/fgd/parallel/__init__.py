"""Many devices and many processes: joining them, and what lies where on them."""

from fgd.parallel._processes import init as init
