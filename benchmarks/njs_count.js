// Counts the Foo messages of each type that pass through nginx's stream module: what fooproxy's analyzer does, in njs.
// Of the ways tried (split, match, charCodeAt on strings) searching buffers costs least.

const TYPES = {82: 'REQ', 65: 'ACK', 78: 'NAK'};

function counter() {
    const counts = {REQ: 0, ACK: 0, NAK: 0};
    let lineStarts = true;
    return function (data) {
        const size = data.length;
        let at = 0;
        while (at < size) {
            if (lineStarts) {
                counts[TYPES[data[at]]]++;
            }
            at = data.indexOf(10, at) + 1;
            lineStarts = at > 0;
            if (!lineStarts) {
                break;
            }
        }
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
