// Counts the Foo messages of each type that pass through nginx's stream module: what fooproxy's analyzer does, in njs.
// Whether a line is a message is read off its head, as there; what has begun is kept until its newline comes.
// Of the ways tried (split, match, charCodeAt on strings) searching buffers costs least.

const NL = 10, CR = 13, SPACE = 32, TAB = 9, PLUS = 43, MINUS = 45, ZERO = 48, NINE = 57;
const K = 75, C = 67, Q = 81, E = 69;
const TYPES = {82: 'REQ', 65: 'ACK', 78: 'NAK'};

// The type of the line from `at` to `end`, or 'invalid'.
function classify(data, at, end) {
    const type = TYPES[data[at]];
    const second = data[at + 1], third = data[at + 2];
    if (type === undefined || !(type === 'REQ' ? second === E && third === Q
                                : third === K && second === (type === 'ACK' ? C : 65))) {
        return 'invalid';
    }
    at += 3;
    let byte = data[at];
    if (byte !== SPACE && byte !== TAB) {
        return 'invalid';
    }
    do {
        byte = data[++at];
    } while (byte === SPACE || byte === TAB);
    if (byte === PLUS || byte === MINUS) {
        byte = data[++at];
    }
    if (!(byte >= ZERO && byte <= NINE)) {
        return 'invalid';
    }
    do {
        byte = data[++at];
    } while (byte >= ZERO && byte <= NINE);
    return byte === SPACE || byte === TAB || at === end || (byte === CR && at + 1 === end) ? type : 'invalid';
}

function counter() {
    const counts = {REQ: 0, ACK: 0, NAK: 0, invalid: 0};
    let begun = null;
    return function (data) {
        if (begun !== null) {
            data = Buffer.concat([begun, data]);
        }
        const size = data.length;
        let at = 0;
        while (at < size) {
            const end = data.indexOf(NL, at);
            if (end < 0) {
                break;
            }
            counts[classify(data, at, end)]++;
            at = end + 1;
        }
        begun = at < size ? Buffer.from(data.slice(at)) : null;
    };
}

function count(session) {
    const requests = counter();
    const replies = counter();
    session.on('upstream', function (data, flags) {
        requests(data);
        session.send(data, flags);
    });
    session.on('downstream', function (data, flags) {
        replies(data);
        session.send(data, flags);
    });
}

export default {count};
