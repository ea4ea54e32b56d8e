// Super-blocks of 256 k that are rare: from two rows on they are unpacked, and share the tiles for that. See formats.cc.
#include "packed_linear.h"

OCTAVO_BEGIN

OCTAVO_ENTRIES(formats_rare,
               {"format.iq3_s.p32.k4.1", &kPacked<Iq3_s>},
               {"format.iq3_xxs.p32.k4.1", &kPacked<Iq3_xxs>},
               {"format.iq2_s.p32.k4.1", &kPacked<Iq2_s>},
               {"format.iq2_xs.p32.k4.1", &kPacked<Iq2_xs>},
               {"format.iq2_xxs.p32.k4.1", &kPacked<Iq2_xxs>},
               {"format.iq1_m.p32.k4.1", &kPacked<Iq1_m>},
               {"format.iq1_s.p32.k4.1", &kPacked<Iq1_s>},
               {"format.tq2_0.p32.k4.1", &kPacked<Tq2_0>})

OCTAVO_END
